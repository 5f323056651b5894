"""Who works: submitting studies, and workers that train their trials."""
