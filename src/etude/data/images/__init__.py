"""Images and their classes: embedded sets, generators, local files and public sets by name, all as `ImageData`.

from etude.data import images
data = images.digits()                        # offline, a second
data = images.image_folder("photos/", size=64)
data = images.hub("uoft-cs/cifar10")          # needs the network once
"""

from etude.data.images.archives import cifar10_jpeg, npz
from etude.data.images.embedded import digits, mnist5k, shapes
from etude.data.images.folder import image_folder
from etude.data.images.natural import natural_crops
from etude.data.images.public import hub

__all__ = ["cifar10_jpeg", "digits", "hub", "image_folder", "mnist5k", "natural_crops", "npz", "shapes"]
