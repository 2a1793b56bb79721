"""From files to upright RGB pages: images, animations, TIFF and PDF are opened here and nowhere
else. `reader` is the door; below it are files, Pillow's images, and PDFium."""
