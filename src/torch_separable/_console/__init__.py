"""What a person sees while a call runs or a notebook shows: progress bars, styled text, HTML tables."""
