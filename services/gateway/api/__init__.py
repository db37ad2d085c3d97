"""The descriptions of the interfaces: OpenAPI, AsyncAPI, and the page that shows them."""
