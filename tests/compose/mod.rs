mod faults;
mod images;
mod operators;
mod project;
mod readme;
