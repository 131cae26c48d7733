// Swagger UI on our own description; no validator, which would ask another host.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger", validatorUrl: null, deepLinking: true });
