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

sub is_audience {
    my ($aud) = @_;
    return grep { $_ eq $ENV{AUDIENCE} } ref $aud ? @$aud : $aud;
}

my $app = sub {
    my ($env) = @_;
    my ($token) = ($env->{HTTP_AUTHORIZATION} // "") =~ /^Bearer ([\w-]+\.[\w-]+\.[\w-]+)$/i
        or return [401, ["WWW-Authenticate" => "Bearer"], []];
    my $claims = eval {
        my ($header, $payload) = decode_jwt(token => $token, kid_keys => jwks(), accepted_alg => "RS256",
            verify_iss => $ENV{ISSUER}, verify_aud => \&is_audience, verify_exp => 1, decode_header => 1);
        die "unknown extensions\n" if $header->{crit};
        die "the payload is not an object\n" if ref $payload ne "HASH";
        die "exp is not a number\n" if ref $payload->{exp};
        $payload;
    } or return [401, ["WWW-Authenticate" => 'Bearer error="invalid_token"'], []];
    return [200, ["Content-Type" => "application/json"], [encode_json($claims)]];
};

HTTP::Server::PSGI->new(host => "127.0.0.1", port => $ENV{PORT})->run($app);
