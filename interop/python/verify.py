"""Runs the Python recipes of ../README.md.

It reads [{name, code, tokens: {fault: token}}] and prints {versions, results: {name: {fault: error}}},
with no error where a token was accepted.
"""
import json
import sys
from importlib.metadata import version


def load(code):
    """Returns the recipe's function, which has no cache of another."""
    namespace = {}
    exec(code, namespace)
    return namespace["verify"]


def attempt(verify, token):
    try:
        verify(token)
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"


results = {}
for recipe in json.load(sys.stdin):
    errors = results[recipe["name"]] = {}
    veteran = load(recipe["code"])  # meets all tokens
    for fault, token in recipe["tokens"].items():
        errors[fault] = attempt(load(recipe["code"]), token)
        attempt(veteran, token)
    errors["good at last"] = attempt(veteran, recipe["tokens"]["good"])
versions = [f"{name} {version(name)}" for name in ["Authlib", "cryptography", "jwcrypto", "PyJWT", "python-jose"]]
json.dump({"versions": versions, "results": results}, sys.stdout)
