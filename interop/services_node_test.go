package interop

import "time"

// nodeServices are recipes for Node.js.
var nodeServices = []service{
	node("jose", "jose", service{slow: true, wait: 40 * time.Second}, "jose"),
	node("jose, strict", "jose-strict", service{slow: true, wait: 40 * time.Second}, "jose"),
	node("jsonwebtoken with jwks-rsa", "jsonwebtoken", service{strict: "jsonwebtoken with jwks-rsa, strict"}, "jsonwebtoken", "jwks-rsa"),
	node("jsonwebtoken with jwks-rsa, strict", "jsonwebtoken-strict", service{}, "jsonwebtoken", "jwks-rsa"),
	node("express-oauth2-jwt-bearer", "express-oauth2-jwt-bearer",
		service{strict: "express-oauth2-jwt-bearer, strict", slow: true, wait: 40 * time.Second},
		"express-oauth2-jwt-bearer", "express"),
	node("express-oauth2-jwt-bearer, strict", "express-oauth2-jwt-bearer-strict", service{slow: true, wait: 40 * time.Second},
		"express-oauth2-jwt-bearer", "express"),
	node("express-jwt", "express-jwt", service{strict: "express-jwt, strict", slow: true, wait: 70 * time.Second},
		"express-jwt", "jwks-rsa", "express"),
	node("express-jwt, strict", "express-jwt-strict", service{slow: true, wait: 70 * time.Second}, "express-jwt", "jwks-rsa", "express"),
	node("passport-jwt", "passport-jwt", service{strict: "passport-jwt, strict", slow: true, wait: 70 * time.Second},
		"passport-jwt", "jwks-rsa", "express"),
	node("passport-jwt, strict", "passport-jwt-strict", service{slow: true, wait: 70 * time.Second}, "passport-jwt", "jwks-rsa", "express"),
	node("koa-jwt", "koa-jwt", service{strict: "koa-jwt, strict"}, "koa-jwt", "jwks-rsa", "koa"),
	node("koa-jwt, strict", "koa-jwt-strict", service{}, "koa-jwt", "jwks-rsa", "koa"),
	node("fast-jwt with get-jwks", "fast-jwt", service{strict: "fast-jwt with get-jwks, strict"}, "fast-jwt", "get-jwks"),
	node("fast-jwt with get-jwks, strict", "fast-jwt-strict", service{}, "fast-jwt", "get-jwks"),
	node("@fastify/jwt", "fastify-jwt", service{strict: "@fastify/jwt, strict"}, "@fastify/jwt", "get-jwks", "fastify"),
	node("@fastify/jwt, strict", "fastify-jwt-strict", service{}, "@fastify/jwt", "get-jwks", "fastify"),
	node("hono", "hono", service{}, "hono"),
	node("aws-jwt-verify", "aws-jwt-verify", service{tls: true, strict: "aws-jwt-verify, strict", slow: true, wait: 20 * time.Second},
		"aws-jwt-verify"),
	node("aws-jwt-verify, strict", "aws-jwt-verify-strict", service{tls: true, slow: true, wait: 20 * time.Second}, "aws-jwt-verify"),
	node("@clerk/backend", "clerk", service{strict: "@clerk/backend, strict"}, "@clerk/backend"),
	node("@clerk/backend, strict", "clerk-strict", service{}, "@clerk/backend"),
	node("@okta/jwt-verifier", "okta", service{strict: "@okta/jwt-verifier, strict", restart: true, slow: true, wait: 70 * time.Second},
		"@okta/jwt-verifier"),
	node("@okta/jwt-verifier, strict", "okta-strict", service{slow: true, wait: 70 * time.Second}, "@okta/jwt-verifier"),
}

// node returns a service of a file in node/.
func node(name, file string, s service, packages ...string) service {
	s.name, s.dir, s.files = name, "node", []string{file + ".mjs"}
	s.command = []string{"node", file + ".mjs"}
	if s.restart {
		s.command = []string{"sh", "-c", "while :; do node " + file + ".mjs; done"}
	}
	for _, name := range packages {
		s.packages = append(s.packages, "npm:"+name)
	}
	return s
}
