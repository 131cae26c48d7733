#!/bin/bash
# when-up HOST:PORT COMMAND…: runs the command as soon as HOST:PORT accepts connections.
until (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; do sleep 1; done
shift
exec "$@"
