#!/bin/bash
# Run by PostgreSQL's image when its volume is empty: creates a database and an owner of the same name for MLflow, Prefect and digits.
set -eu
for name in mlflow prefect digits; do
  password="$(printf '%s' "$name" | tr '[:lower:]' '[:upper:]')_DATABASE_PASSWORD"
  psql -v ON_ERROR_STOP=1 -v name="$name" -v password="${!password}" -U "$POSTGRES_USER" -d postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
