cat > "$STATE/rabbitmq.conf" <<END
listeners.tcp = none
management.tcp.ip = 127.0.0.1
management.tcp.port = $PORT
auth_backends.1 = rabbit_auth_backend_oauth2
auth_oauth2.resource_server_id = $AUDIENCE
auth_oauth2.jwks_url = $JWKS_URL
END
echo '[rabbitmq_management, rabbitmq_auth_backend_oauth2].' > "$STATE/enabled_plugins"
export RABBITMQ_NODENAME="jwks$PORT@localhost" RABBITMQ_CONFIG_FILE="$STATE/rabbitmq.conf" RABBITMQ_ENABLED_PLUGINS_FILE="$STATE/enabled_plugins"
export RABBITMQ_MNESIA_BASE="$STATE" RABBITMQ_LOGS=- RABBITMQ_DIST_PORT=$((PORT - 12000)) ERL_CRASH_DUMP="$STATE/erl_crash.dump"
export ERL_EPMD_PORT=$((PORT - 18000))
epmd & # otherwise RabbitMQ leaves one running
exec /usr/lib/rabbitmq/bin/rabbitmq-server
