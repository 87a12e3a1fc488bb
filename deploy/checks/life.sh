# Sourced by the checks of builds for other machines. It runs the server that the array program
# starts, in the directory dir, and leaves the process id in server.

fail() { echo "$*"; exit 1; }

# start starts the server, and sets url and server.
start() {
	: >"$dir/url"
	"${program[@]}" -addr localhost:0 -keys "$keys" >"$dir/url" 2>>"$dir/log" &
	server=$!
	for _ in {1..300}; do
		[ -s "$dir/url" ] && break || sleep 0.1
	done
	url=$(cat "$dir/url")
	[[ $url =~ ^http://localhost:[0-9]+$ ]] || fail "the server printed '$url'; want its URL"
}

# stop interrupts the server, as Ctrl-C does, and fails unless it ends with status 0.
stop() {
	kill -INT "$server"
	wait "$server" || fail "the server ended with status $?; want 0"
	server=
}

kids() { curl -fsS "$url/.well-known/jwks.json" | jq -r '.keys[].kid'; }

cd "$dir" # paths of Windows differ
keys=keys
start
before=$(kids)
[ "$(wc -l <<<"$before")" -ge 3 ] || fail "the JWK Set has the keys $before; want three or more"
kid=$(curl -fsS -X POST "$url/auth" | jq -r '.token | split(".")[0] | @base64d | fromjson.kid')
[ "$kid" = "$(head -n 1 <<<"$before")" ] || fail "the token has the kid $kid; want the first of $before"
curl -fsS -X POST "$url/auth?fault=signature" | jq -e '.fault == "signature"' >/dev/null
"${program[@]}" -addr "${url#http://}" -healthcheck 2>>"$dir/log" || fail "the server is not healthy"
stop
! "${program[@]}" -addr "${url#http://}" -healthcheck 2>>"$dir/log" || fail "a server that has stopped is healthy"

start
[ "$(kids)" = "$before" ] || fail "a restart changed the keys"
file=$(echo keys/*."$kid".pem)
mv "$file" "${file%.pem}.revoked"
for _ in {1..50}; do
	! grep -qx "$kid" <<<"$(kids)" && break || sleep 0.1
done
! grep -qx "$kid" <<<"$(kids)" || fail "a revoked key is published"
next=$(curl -fsS -X POST "$url/auth" | jq -r '.token | split(".")[0] | @base64d | fromjson.kid')
[ "$next" = "$(sed -n 2p <<<"$before")" ] || fail "after the revocation $next signs; want the next key of $before"
stop
cd - >/dev/null
