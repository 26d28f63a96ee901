"""Every donor's vector on every receiver."""
