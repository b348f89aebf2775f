"""What takes this project to other machines; nothing in the packages imports it."""
