"""Teaching a reward to judge estimates: data, curriculum, back-ends, loop, validation."""
