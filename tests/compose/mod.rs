mod faults;
mod images;
mod project;
mod readme;
