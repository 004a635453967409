"use strict";
// What stands behind the # is sent to no server by itself. It leaves the address, and with it the history, before it is used.
const token = location.hash.slice(1);
if (token) {
  history.replaceState(null, "", "/");
  const form = document.getElementById("login");
  form.elements.token.value = token;
  form.submit();
}
