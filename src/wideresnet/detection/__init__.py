"""Object detection on COCO and on one's own data in its format: our networks under torchvision's detectors."""
