// Swagger UI on our own description; no validator, which would ask another host, and no deep links, which it puts into buttons.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger", validatorUrl: null, deepLinking: false });
