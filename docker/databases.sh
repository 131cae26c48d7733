#!/bin/bash
# Run by the image of PostgreSQL on an empty volume: a database with an owner of the same name for each who keeps state.
set -eu
for name in mlflow prefect digits; do
  password="$(printf '%s' "$name" | tr '[:lower:]' '[:upper:]')_DATABASE_PASSWORD"
  psql -v ON_ERROR_STOP=1 -v name="$name" -v password="${!password}" -U "$POSTGRES_USER" -d postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
