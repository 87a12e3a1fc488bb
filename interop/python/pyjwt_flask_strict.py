import os

import jwt
from flask import Flask, request

app = Flask(__name__)
jwks = jwt.PyJWKClient(os.environ["JWKS_URL"])


@app.get("/")
def index():
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return "", 401, {"WWW-Authenticate": "Bearer"}
    try:
        claims = jwt.decode(token, jwks.get_signing_key_from_jwt(token).key, algorithms=["RS256"],
                            issuer=os.environ["ISSUER"], audience=os.environ["AUDIENCE"],
                            options={"require": ["exp", "sub"]}, leeway=60)
    except (jwt.PyJWTError, TypeError):  # PyJWKClientError is not an InvalidTokenError
        return "", 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    return claims


app.run(port=int(os.environ["PORT"]))
