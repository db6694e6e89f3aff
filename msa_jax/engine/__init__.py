"""Using a trained model: encoding documents, routing, generating."""
