"""Memory that the devices of one machine share."""
