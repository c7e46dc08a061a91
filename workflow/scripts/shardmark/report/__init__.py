"""What a reader is told: the page, its tables, the certificate, the exports."""
