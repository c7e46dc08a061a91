# requirements.txt without torch, torchvision and what only torch brings: for TORCH=site.
/^[a-z]/ { keep = !/^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ || /^nvidia-ml-py==/ }
keep
