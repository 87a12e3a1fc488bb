use strict;
use warnings;
use Crypt::JWT qw(decode_jwt);
use HTTP::Server::PSGI;
use HTTP::Tiny;
use JSON::PP;

my ($jwks, $read) = ({ keys => [] }, 0);

sub jwks {
    if (time - $read >= ($ENV{READ_EVERY} // 600)) {
        $read = time;
        my $response = HTTP::Tiny->new(timeout => 5)->get($ENV{JWKS_URL});
        $jwks = decode_json($response->{content}) if $response->{success};
    }
    return $jwks;
}

my $app = sub {
    my ($env) = @_;
    my ($token) = ($env->{HTTP_AUTHORIZATION} // "") =~ /^Bearer (.+)/i
        or return [401, ["WWW-Authenticate" => "Bearer"], []];
    my $claims = eval {
        decode_jwt(token => $token, kid_keys => jwks(), accepted_alg => "RS256",
            verify_iss => $ENV{ISSUER}, verify_aud => $ENV{AUDIENCE});
    } or return [401, ["WWW-Authenticate" => 'Bearer error="invalid_token"'], []];
    return [200, ["Content-Type" => "application/json"], [encode_json($claims)]];
};

HTTP::Server::PSGI->new(host => "127.0.0.1", port => $ENV{PORT})->run($app);
