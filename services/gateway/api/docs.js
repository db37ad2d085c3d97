"use strict";

window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#interface",
  deepLinking: true,
  displayRequestDuration: true,
  // The prefilled examples can be sent at once.
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  // By default the document is sent to a validator on the internet.
  validatorUrl: null,
});
