from sisa_ray.storage.objects import ObjectStore as LocalStore
