# every bad token: sh interop/catalogue.sh http://127.0.0.1:8080 http://127.0.0.1:3000/hello
issuer=$1 service=$2 failed=0
status() {
	token=$(curl -fsS -X POST "$issuer/auth?$1" | jq -r .token)
	curl -sS -o /dev/null -w '%{http_code}' -H "Authorization: Bearer ${token:?}" "$service"
}
faults=$(curl -fsS "$issuer/faults" | jq -r '.[] | select(.refuse == "must") | "fault=" + .fault')
for query in good ${faults:-no-catalogue} good; do
	got=$(status "$query") || exit 1
	case $query:$got in
	good:2??|fault=*:401) ;;
	*) echo "$query: the service answered $got"; failed=1 ;;
	esac
done
exit $failed
