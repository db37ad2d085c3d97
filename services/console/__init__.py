"""The console shows what Ringback does, and lets people act on it, in a browser.

Owns the sessions of signed-in users. Consumes HTTP from browsers. Publishes requests to the other
services; everything it shows comes from their responses. Guarantees that each page requires its
declared role, that a form of another site has no effect, and that received data never becomes
markup. Users sign in at an OpenID provider, so the console stores no passwords.
"""
