"""Sign-in with OpenID Connect: the provider, its ID tokens, roles and sessions."""
