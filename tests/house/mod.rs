mod image_context;
