"""The database: sessions, tenant scope, schema. Tables live with the domains that own them."""
