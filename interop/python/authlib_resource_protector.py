import os

import requests
from authlib.integrations.flask_oauth2 import ResourceProtector, current_token
from authlib.jose import JsonWebKey
from authlib.oauth2.rfc7523 import JWTBearerTokenValidator
from flask import Flask


class Validator(JWTBearerTokenValidator):
    def __init__(self, issuer, audience):
        keys = requests.get(os.environ["JWKS_URL"]).json()  # once
        super().__init__(JsonWebKey.import_key_set(keys))
        self.claims_options = {
            "exp": {"essential": True},
            "iss": {"essential": True, "value": issuer},
            "aud": {"essential": True, "value": audience},
        }


require_auth = ResourceProtector()
require_auth.register_token_validator(Validator(os.environ["ISSUER"], os.environ["AUDIENCE"]))
app = Flask(__name__)


@app.get("/")
@require_auth()
def index():
    return dict(current_token)


app.run(port=int(os.environ["PORT"]))
