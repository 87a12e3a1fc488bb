# The key that signs is the first one of the set. HAProxy reads no JWK Set, so this makes it a PEM file.
curl -s "$JWKS_URL" | node -e '
  const [jwk] = JSON.parse(require("fs").readFileSync(0)).keys
  console.log(require("crypto").createPublicKey({ key: jwk, format: "jwk" }).export({ type: "spki", format: "pem" }))
' > "$STATE/key.pem"
exec haproxy -db -f haproxy.cfg
