mod directions;
mod image_context;
mod imports;
mod named_files;
