"""From pictures to images: opening files, finding lines, digits and rules, cutting, and MNIST's frame; and pictures that are made to train on."""
