#!/bin/bash
# when-up HOST:PORT COMMAND…: runs the command once somebody listens there.
until (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; do sleep 1; done
shift
exec "$@"
