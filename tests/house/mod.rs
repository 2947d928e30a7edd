mod directions;
mod image_context;
mod imports;
mod monitoring;
mod named_files;
