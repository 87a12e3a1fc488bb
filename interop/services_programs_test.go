package interop

// programServices are programs that verify tokens when they are configured to.
var programServices = []service{
	debian("Apache with mod_auth_openidc", "apache.conf", service{
		command: []string{"sh", "-c", `exec apache2 -d "$STATE" -f "$PWD/apache.conf" -D FOREGROUND`},
		tls:     true, path: "/api",
		open: "2.4.12.3 has no setting for the algorithm of a bearer token, `nbf` or `crit`",
	}, "deb:apache2", "deb:libapache2-mod-auth-openidc"),
	debian("Apache with mod_oauth2", "mod-oauth2.conf", service{
		command: []string{"sh", "-c", `exec apache2 -d "$STATE" -f "$PWD/mod-oauth2.conf" -D FOREGROUND`}, path: "/api",
		open: "3.3.1 has no setting for the algorithm of a token, `nbf` or `crit`",
	}, "deb:apache2", "deb:libapache2-mod-oauth2"),
	debian("HAProxy", "haproxy.sh", service{
		files: []string{"haproxy.cfg", "haproxy.sh"}, strict: "HAProxy, strict", keeps: "a reload for each key",
		slow: true,
	}, "deb:haproxy"),
	debian("HAProxy, strict", "haproxy-strict.sh", service{files: []string{"haproxy-strict.cfg"}, slow: true}, "deb:haproxy"),
	debian("oauth2-proxy", "oauth2-proxy.sh", service{slowOnly: true}, "programs:github.com/oauth2-proxy/oauth2-proxy/v7"),
	debian("RabbitMQ", "rabbitmq.sh", service{
		path: "/api/whoami", flags: []string{"-claims", `{"scope":"` + audience + `.tag:management"}`},
		tls: true, slowOnly: true,
		open: "3.10.8 has no setting for `iss`, `nbf` or `crit`",
	}, "deb:rabbitmq-server"),
}

// debian returns a service of a file in programs/: a script, unless s has a command.
func debian(name, file string, s service, packages ...string) service {
	s.name, s.dir, s.packages = name, "programs", packages
	if s.files == nil {
		s.files = []string{file}
	}
	if s.command == nil {
		s.command = []string{"sh", file}
	}
	return s
}
