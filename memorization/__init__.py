"""Which training images a text-to-image model holds, how hard they are to get out, and whether they are still there."""
