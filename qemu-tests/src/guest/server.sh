# One request to the metadata server: QEMU runs this for each connection that the guest makes to 169.254.169.254:80.
# The documents lie beside this file; every path that was asked for is noted in `requests`.
cd "${0%/*}" || exit 1
read -r _ path _
echo "$path" >>requests
while read -r line && [ "${#line}" -gt 1 ]; do :; done
file=${path##*/}
if [ -n "$file" ] && [ -f "documents/$file" ]; then
  printf 'HTTP/1.0 200 OK\r\n\r\n'
  cat "documents/$file"
else
  printf 'HTTP/1.0 404 Not Found\r\n\r\n'
fi
