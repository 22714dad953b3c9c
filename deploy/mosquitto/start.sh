#!/bin/sh
# Starts mosquitto with the login coreflux-mcp, whose password is in the secret mqtt_password; mosquitto wants its hash.
set -eu
umask 077
secret=/run/secrets/mqtt_password
if ! [ -s "$secret" ] || ! [ -f "$secret" ]; then
    echo "$secret is missing, empty or no file: the README, under 'In a container', has the command that makes it." >&2
    exit 1
fi
printf 'coreflux-mcp:%s\n' "$(cat "$secret")" > /tmp/passwords
mosquitto_passwd -U /tmp/passwords
exec mosquitto -c /mosquitto/config/mosquitto.conf
