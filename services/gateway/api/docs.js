"use strict";

window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#interface",
  deepLinking: true,
  displayRequestDuration: true,
  // A newcomer sends at once what is prefilled.
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  // The default would send the document to a server on the internet.
  validatorUrl: null,
});
