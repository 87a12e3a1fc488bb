package interop

import "time"

// The -check-wait for services that read the JWK Set once in five and in ten minutes.
const (
	fiveMinutes = 320 * time.Second
	tenMinutes  = 660 * time.Second
)

// Python's packages are Debian's, so is the interpreter.
var pythonServices = []service{
	python("PyJWT with Flask", "pyjwt_flask", service{strict: "PyJWT with Flask, strict", slow: true, wait: fiveMinutes}, "jwt", "flask"),
	python("PyJWT with Flask, strict", "pyjwt_flask_strict", service{slow: true, wait: fiveMinutes}, "jwt", "flask"),
	python("PyJWT with FastAPI", "pyjwt_fastapi", service{strict: "PyJWT with FastAPI, strict", slow: true, wait: fiveMinutes},
		"jwt", "fastapi", "uvicorn"),
	python("PyJWT with FastAPI, strict", "pyjwt_fastapi_strict", service{slow: true, wait: fiveMinutes}, "jwt", "fastapi", "uvicorn"),
	python("Authlib's ResourceProtector", "authlib_resource_protector", service{
		strict: "Authlib's ResourceProtector, strict", keeps: "a restart for each key",
		setsOf: frequentName("Authlib's ResourceProtector, strict"),
	}, "authlib", "flask"),
	python("Authlib's ResourceProtector, strict", "authlib_resource_protector_strict", service{heeds: true}, "authlib", "flask"),
	python("python-jose", "python_jose", service{
		strict: "python-jose, strict", heeds: true, slow: true, wait: tenMinutes,
	}, "jose", "flask"),
	python("python-jose, strict", "python_jose_strict", service{}, "jose", "flask"),
	python("jwcrypto", "jwcrypto_flask", service{
		strict: "jwcrypto, strict", heeds: true, slow: true, wait: tenMinutes,
	}, "jwcrypto", "flask"),
	python("jwcrypto, strict", "jwcrypto_strict", service{}, "jwcrypto", "flask"),
	python("Django REST framework with simplejwt", "simplejwt", service{
		strict: "Django REST framework with simplejwt, strict", slow: true, wait: fiveMinutes,
	}, "djangorestframework-simplejwt", "jwt", "django"),
	python("Django REST framework with simplejwt, strict", "simplejwt_strict", service{slow: true, wait: fiveMinutes},
		"djangorestframework-simplejwt", "jwt", "django"),
}

func python(name, file string, s service, packages ...string) service {
	s.command = []string{"/usr/bin/python3", file + ".py"}
	for _, name := range packages {
		s.packages = append(s.packages, "deb:python3-"+name)
	}
	return script(name, "python", file+".py", s)
}

var rubyServices = []service{
	script("ruby-jwt with Sinatra", "ruby", "ruby_jwt.rb", service{
		command: []string{"ruby", "ruby_jwt.rb"}, packages: []string{"deb:ruby-jwt", "deb:ruby-sinatra"},
		strict: "ruby-jwt with Sinatra, strict", heeds: true, slow: true, wait: fiveMinutes,
	}),
	script("ruby-jwt with Sinatra, strict", "ruby", "ruby_jwt_strict.rb", service{
		command: []string{"ruby", "ruby_jwt_strict.rb"}, packages: []string{"deb:ruby-jwt", "deb:ruby-sinatra"},
	}),
}

var perlServices = []service{
	script("Perl's Crypt::JWT", "perl", "crypt_jwt.pl", service{
		command: []string{"perl", "crypt_jwt.pl"}, packages: []string{"deb:libcrypt-jwt-perl"},
		strict: "Perl's Crypt::JWT, strict", heeds: true, slow: true, wait: tenMinutes,
	}),
	script("Perl's Crypt::JWT, strict", "perl", "crypt_jwt_strict.pl", service{
		command: []string{"perl", "crypt_jwt_strict.pl"}, packages: []string{"deb:libcrypt-jwt-perl"},
	}),
}

// script returns a service of one file.
func script(name, dir, file string, s service) service {
	s.name, s.dir, s.files = name, dir, []string{file}
	return s
}
