"""What tests of actors and of the grid itself are made of; shipped to users."""
