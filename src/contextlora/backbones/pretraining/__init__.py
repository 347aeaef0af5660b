"""Makes the bundled backbone: architecture, skills, batches, training, checkpoint. Nothing else imports it."""
