# One request to the metadata server: QEMU runs this for each connection that the guest makes to its port 80.
# The documents lie beside this file, by their path or by its last part; every path that was asked for is noted in
# `requests`. Two bad habits can be turned on: `documents/busy` holds how many requests are put off first, and
# `documents/secret` the header without which nothing but the token is given.
cd "${0%/*}" || exit 1
read -r method path _
echo "$path" >>requests
secret=
[ -f documents/secret ] && read -r secret <documents/secret
known=$([ -n "$secret" ] || echo yes)
while read -r line && [ "${#line}" -gt 1 ]; do
  # A line ends with a carriage return.
  [ "${line%?}" != "$secret" ] || known=yes
done
file=documents$path
[ -f "$file" ] || file=documents/${path##*/}
[ "$file" != documents/ ] || file=documents${path}index
if [ -f documents/busy ] && [ "$(wc -l <requests)" -le "$(cat documents/busy)" ]; then
  printf 'HTTP/1.0 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n'
elif [ "$method" != PUT ] && [ -z "$known" ]; then
  printf 'HTTP/1.0 401 Unauthorized\r\n\r\n'
elif [ -f "$file" ]; then
  printf 'HTTP/1.0 200 OK\r\n\r\n'
  cat "$file"
else
  printf 'HTTP/1.0 404 Not Found\r\n\r\n'
fi
