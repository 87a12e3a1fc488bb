require "jwt"
require "net/http"
require "sinatra"

set :port, ENV["PORT"]

cached_keys = nil
cache_last_update = 0
jwk_loader = lambda do |options|
  # A kid that is not found causes another read at most every 5 minutes.
  cached_keys = nil if options[:kid_not_found] && cache_last_update < Time.now.to_i - ENV.fetch("READ_EVERY", 300).to_i
  cached_keys ||= begin
    cache_last_update = Time.now.to_i
    JSON.parse(Net::HTTP.get(URI(ENV["JWKS_URL"])))
  end
end

get "/" do
  token = request.env["HTTP_AUTHORIZATION"].to_s[/\Abearer (.+)\z/i, 1]
  halt 401, { "WWW-Authenticate" => "Bearer" }, "" unless token
  claims, = JWT.decode(token, nil, true, algorithms: ["RS256"], jwks: jwk_loader,
                       iss: ENV["ISSUER"], verify_iss: true, aud: ENV["AUDIENCE"], verify_aud: true)
  claims.to_json
rescue JWT::DecodeError # JWT::JWKError is one
  halt 401, { "WWW-Authenticate" => 'Bearer error="invalid_token"' }, ""
end
