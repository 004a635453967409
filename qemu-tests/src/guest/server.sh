# One request to a metadata server: QEMU runs this for each connection that the guest makes to its port 80.
# The documents lie in the folder that is its argument, by their path or by its last part; every path that was asked
# for is noted there in `requests`, and what was sent along in `posted`. Bad habits can be turned on: `secret` holds the
# header without which nothing but the token is given, and `moods` a word for each of the first requests:
#   closed      the connection ends without an answer
#   silent      nobody says anything
#   slow        the answer takes its time
#   429, 503 …  it is put off
cd "${0%/*}/$1" || exit 1
read -r method path _
echo "$path" >>requests
mood=$([ ! -f moods ] || sed -n "$(wc -l <requests)p" moods)
case "$mood" in
closed) exit ;;
silent) exec sleep 20 ;;
slow) sleep 3 ;;
esac
secret=
[ -f secret ] && read -r secret <secret
known=$([ -n "$secret" ] || echo yes)
length=0
while read -r line && [ "${#line}" -gt 1 ]; do
  # A line ends with a carriage return.
  line=${line%?}
  [ "$line" != "$secret" ] || known=yes
  case "$line" in Content-Length:*) length=${line#*: } ;; esac
done
file=.$path
[ -f "$file" ] || file=./${path##*/}
[ "$file" != ./ ] || file=.${path}index
case "$mood" in
[0-9]*)
  printf 'HTTP/1.0 %s Later\r\nRetry-After: 1\r\n\r\n' "$mood"
  exit
  ;;
esac
[ "$length" -eq 0 ] || head -c "$length" >>posted
if [ "$method" != PUT ] && [ -z "$known" ]; then
  printf 'HTTP/1.0 401 Unauthorized\r\n\r\n'
elif [ -f "$file" ]; then
  printf 'HTTP/1.0 200 OK\r\n\r\n'
  cat "$file"
else
  printf 'HTTP/1.0 404 Not Found\r\n\r\n'
fi
