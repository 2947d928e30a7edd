mod away;
mod browser;
mod running;
mod screens;
