"""Parts of the measuring tools: datasets, traffic, a lean HTTP client, reports. Nothing here needs torch."""
