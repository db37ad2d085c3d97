"""The API documents (OpenAPI, AsyncAPI) and the page that shows them."""
